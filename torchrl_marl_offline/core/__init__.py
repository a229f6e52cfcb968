"""What every part of the library stands on; imports no other part."""
