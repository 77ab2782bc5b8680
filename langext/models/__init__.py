"""Find and load base models and extended models, and change whole models after training."""
