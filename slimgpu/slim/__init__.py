"""From facts to a plan in which every action has a reason, and from the plan to the slim image."""
