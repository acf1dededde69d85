"""One module for each verb or family of verbs, imported when the verb is called."""
