"""Model families: the parts of a model by name, its stock form, and computations that training and exports share."""
