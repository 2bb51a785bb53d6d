"""Making the tiny backbones: drawn pages, made-up people, questions about both, and the recipe that trains on them."""
