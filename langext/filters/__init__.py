"""Steps that documents go through before training; each is a datatrove pipeline step."""
