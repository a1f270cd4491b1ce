"""How good a student is: against ground truth, against draws, and without either."""
