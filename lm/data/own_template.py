"""A converted model's own chat template as one that runs are trained with."""

import json
import re

import numpy as np

from lm.data import chat, templates
from lm.data.records import Message
from lm.errors import UserError


def own_template(source: chat.Source) -> str | None:
    """The text of a converted model's own template, as `data.template` has it; None if it has none. UserError if a run on
    conversations cannot be written by it as the model's chat is."""
    if source.run is not None or not (texts := chat.templates_of(source)):
        return None
    try:
        return _as_data(chat.Converted(source, texts))
    except UserError as error:
        raise UserError(
            f"the chat template of {source.folder} is none to train with ({error}): name another, such as "
            "--config.data.template=chatml"
        ) from None


def _as_data(own: chat.Converted) -> str:
    """A template with the names of special tokens that it asks for, where those of the tokenizer are others. UserError if it
    depends on the day, marks no answers, or writes other ids than the model's chat."""
    text, theirs, ours = own.template.texts["default"], own.template.special, templates.special_names(own.tokenizer)
    if "strftime_now" in text:
        raise UserError("it writes the day's date, so that rows would differ from day to day")
    asked = (name for name in sorted({*theirs, *ours}) if re.search(rf"\b{re.escape(name)}\b", text))
    named = {name: theirs.get(name, "") for name in asked if theirs.get(name) != ours.get(name)}
    text = "".join(f"{{%- set {name} = {json.dumps(value)} %}}" for name, value in named.items()) + text
    template = templates.Template({"default": text}, own.tokenizer, ours, "it")
    talk = [Message("user", "question"), Message("assistant", "answer"), Message("user", "question")]
    for messages in (talk[:1], talk):
        ids = own.ids([{"role": m.role, "content": m.content} for m in messages])
        if not np.array_equal(template.prompt(messages), ids):
            raise UserError("its tokenizer gives other ids for each part of a conversation than for the whole")
    template.answered(talk)
    return text
