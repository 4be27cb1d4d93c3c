"""All SQL: the database, the tables, the journal and what is read and changed in one transaction."""
