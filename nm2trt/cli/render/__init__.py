"""Tables, JUnit and progress: documents as text for a terminal."""
