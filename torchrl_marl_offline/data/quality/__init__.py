"""What is wrong with a dataset: inspection, repair, cards."""
