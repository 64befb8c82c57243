"""Human action recognition: the dataset, its features and the transfer protocol."""
