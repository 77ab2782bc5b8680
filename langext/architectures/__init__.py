"""Model families and what is computed with them: parts by name, stock forms, and the loss of the head."""
