"""What each study shows on the page."""
