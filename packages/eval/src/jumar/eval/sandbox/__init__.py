"""Programs that a model wrote: run where they can harm nothing, judged by whether they came to their end."""
