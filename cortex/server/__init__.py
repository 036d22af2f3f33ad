"""The server: takes jobs, lets the scheduler decide, relays; opens no input and unpickles nothing."""
