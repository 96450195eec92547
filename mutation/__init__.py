"""Do the tests notice faults? Small ones are put into the code at random, one at a time, and the tests are to fail."""
