"""What `03_evaluate` calls: generation, comfort, knowledge, statistics and claims."""
