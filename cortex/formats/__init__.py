"""Input and output files: planning (`planning`), record readers (`readers`), output writers (`writers`)."""
