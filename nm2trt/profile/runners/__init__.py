"""What is measured: one runner per library, behind one protocol."""
