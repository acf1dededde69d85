"""What a kind of stage is made of: markers of fields, traits, results, the settings it runs with."""
