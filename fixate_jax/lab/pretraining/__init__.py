"""Making the tiny backbones: drawn pages, synthetic users, questions about both, and the recipe that trains on them."""
