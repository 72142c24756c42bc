"""Plans: what the data and the memory decide, written as YAML that a person can edit."""
