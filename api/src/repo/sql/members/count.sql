-- Index-only scan of the primary key; run only where a plan has a limit, so at most that many rows.
select count(*) from members
