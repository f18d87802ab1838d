"""What traces are held against: interventions, true regions, random models, and each other."""
