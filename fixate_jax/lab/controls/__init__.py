"""Controls that say why tuned prompts look where they look: place, habit, content, person."""
