-- Primary key of patients, hospitalizations_patient; none when there is no such patient, or one is in hospital already, or
-- was then.
insert into hospitalizations (id, patient_id, ward, reason, admitted_at)
select $1, p.id, $3, $4, $5 from patients p
where p.id = $2
  and not exists (select 1 from hospitalizations h where h.patient_id = p.id and h.discharged_at > $5)
on conflict (patient_id) where discharged_at is null do nothing
returning id, patient_id, ward, reason, admitted_at, discharged_at, created_at, updated_at
