"""What the HTML pages of checks and evaluations have in common."""
