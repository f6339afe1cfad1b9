-- Primary keys; none when there is no such patient, or no such stay of that patient.
insert into invoices (id, patient_id, hospitalization_id, amount, currency, description, due_on)
select $1, p.id, $3, $4, $5, $6, $7
from patients p
where p.id = $2
  and ($3::uuid is null or exists (select 1 from hospitalizations h where h.id = $3 and h.patient_id = p.id))
