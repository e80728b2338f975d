"""Text-to-video generators behind one small interface, one file a backbone."""
