"""What differs between kinds of training, a file each; the loop and the hooks are shared."""
