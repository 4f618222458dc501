"""The texts of chat templates by name, in Jinja's language: `lm.data.templates` says how they are read."""

from collections.abc import Mapping

# What `lm.data.render` writes without a template: with the role tokens of a tokenizer that is trained here, or without them.
TURNS = """
{{- bos_token or '' }}
{%- for message in messages %}
{{- '<|' + message['role'] + '|>' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + '<|end|>' }}{%- endgeneration %}
{%- else %}
{{- message['content'] + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}
"""
WORDS = """
{{- bos_token or '' }}
{%- for message in messages %}
{{- message['role'] + ':' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- ' ' + message['content'] + eos_token }}{%- endgeneration %}
{%- else %}
{{- ' ' + message['content'] + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'assistant:' }}
{%- endif %}
"""
# OpenAI's Chat Markup Language, as Qwen and SmolLM have it (without a system message of their own).
CHATML = """
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
{%- else %}
{{- message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# huggingface.co/meta-llama/Meta-Llama-3-8B-Instruct; what a tool gives is of the role "ipython", as in Llama 3.1.
LLAMA3 = """
{{- '<|begin_of_text|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + ('ipython' if message['role'] == 'tool' else message['role']) + '<|end_header_id|>\\n\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}
{%- else %}
{{- message['content'] | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
# huggingface.co/google/gemma-3-1b-it: the system message is the beginning of the user's first.
GEMMA = """
{{- bos_token }}
{%- set system = '' %}
{%- set said = messages %}
{%- if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] + '\\n\\n' %}
{%- set said = messages[1:] %}
{%- endif %}
{%- for message in said %}
{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{{- '<start_of_turn>' + ('user' if message['role'] == 'user' else 'model') + '\\n' + (system if loop.first else '') }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] | trim + '<end_of_turn>' }}{%- endgeneration %}
{%- else %}
{{- message['content'] | trim + '<end_of_turn>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<start_of_turn>model\\n' }}
{%- endif %}
"""
# A question is an input of T5 and its answer a target (arXiv 1910.10683, section 2.4); what was said before is divided by eos,
# as in DialoGPT (arXiv 1911.00536). No role is named, so one message alone reads as T5 reads its tasks.
T5 = """
{{- bos_token or '' }}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + eos_token }}{%- endgeneration %}
{%- else %}
{{- message['content'] + eos_token }}
{%- endif %}
{%- endfor %}
"""
TEXTS: Mapping[str, str] = {"turns": TURNS, "chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "t5": T5}
