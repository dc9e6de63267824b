"""Several ranks for one model: who they are, how they start and find each other, and what they exchange by."""
