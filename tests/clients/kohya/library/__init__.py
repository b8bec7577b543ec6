"What the tagging script of kohya-ss/sd-scripts imports of its own repository, done again: the rest of that package needs what tagging does not"
