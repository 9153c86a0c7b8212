"""Models as Ray actors: one worker class for what policy, critic, reference, scorer and trainers share."""
