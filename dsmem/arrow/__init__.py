"""Tables as Hugging Face saves them: Arrow stream files in good batches, opened in a millisecond."""
