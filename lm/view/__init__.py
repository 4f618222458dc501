"""What a run reads, made readable: rows token by token, shares of the mixture, lengths, frequencies, tokenizers."""
