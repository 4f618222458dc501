"""`python -m lm.convert.unpickle IN.bin OUT.safetensors`: a pickle of tensors, read with `weights_only`, and nothing else.

A process of its own, so that whatever a file does to its reader ends with it.
"""

import sys


def main() -> None:
    source, target = sys.argv[1:]
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        sys.exit(f"reading pickled weights needs PyTorch: pip install torch ({error})")
    state = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    save_file({name: t.contiguous().clone() for name, t in state.items()}, target, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
