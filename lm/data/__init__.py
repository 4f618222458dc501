"""From raw documents to a tokenized, checksummed store that is read by position. numpy only."""
