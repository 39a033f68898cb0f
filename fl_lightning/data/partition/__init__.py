"""One pile of records into a federation: read (`source`), take columns (`columns`), deal (`deal`), write (`write`)."""
