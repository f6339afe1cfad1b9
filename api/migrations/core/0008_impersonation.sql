-- A session of the platform's support, in the name of a user: it reads and does nothing else, and everybody sees whose it is.
alter table sessions add column impersonator text check (length(impersonator) <= 254);
