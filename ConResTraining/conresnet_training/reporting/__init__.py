"""Text, pictures and HTML pages for people, shared by all commands; no results are computed here."""
