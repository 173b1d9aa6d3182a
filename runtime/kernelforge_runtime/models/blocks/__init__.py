"""What several versions share; a version's own file says in which order."""
