"""Copies a pickle of tensors to safetensors, reading it with `weights_only`.

    python -m lm.conversion.unpickle IN.bin OUT.safetensors

`lm.conversion.files` starts this as a process of its own, so that whatever a file does to its reader ends with it.
"""

import sys
import zipfile


def main() -> None:
    source, target = sys.argv[1:]
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        sys.exit(f"reading pickled weights needs PyTorch: pip install torch ({error})")
    # Files from before PyTorch 1.6 are not zip archives and cannot be memory-mapped.
    state = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    if not isinstance(state, dict):
        sys.exit(f"it holds a {type(state).__name__}, not tensors by name")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            sys.exit(f"its entry {name!r} is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.is_quantized:
            sys.exit(f"{name!r} is a sparse or quantised tensor; give plain ones")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            sys.exit(f"{name!r} is larger than the data that the file has for it")  # a few bytes could claim terabytes
    save_file({name: t.contiguous().clone() for name, t in state.items()}, target, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
