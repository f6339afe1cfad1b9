-- Index: invoice_payments_pkey.
select (select count(*) from patients), (select count(*) from invoice_payments where id >= $1)
