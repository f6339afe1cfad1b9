-- Index: loans_status, payments_pkey.
select (select count(*) from members), (select count(*) from loans where status = 'active'),
    (select count(*) from payments where id >= $1)
