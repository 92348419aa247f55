"""Files in a trial folder that training and the study share."""
