"""Results to text: tables for people, JSON for machines. Result types come in, nothing is computed here."""
