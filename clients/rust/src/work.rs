//! The work on one offer: fetches the base model, trains, and uploads, through any number of cuts.

use crate::{learn, pb::transfer_service_client::TransferServiceClient, pb::*};
use prost::Message;
use sha2::{Digest as _, Sha256};
use std::sync::{atomic::AtomicI32, atomic::Ordering::Relaxed, Arc, Mutex};
use std::{fs::File, future::Future, io::Write, path::Path, path::PathBuf, time::Duration, time::Instant};
use tokio::time::{sleep, timeout};
use tonic::{transport::Channel, Request, Status};
use tonic_types::StatusExt;

/// The protocol's reason, empty for an error of the network; a text for people; how long to wait at least.
#[derive(Debug)]
pub struct Error(pub String, pub String, Duration);

pub fn error(reason: &str, text: impl ToString) -> Error {
    Error(reason.into(), text.to_string(), Duration::ZERO)
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().filter(|info| info.domain == "fedstream.v1").map(|info| info.reason.clone());
        let delay = details.retry_info().and_then(|retry| retry.retry_delay).unwrap_or_default();
        Error(reason.unwrap_or_default(), status.message().into(), delay)
    }
}

/// Seconds of the last pause, and how often the bytes were refused.
#[derive(Default)]
pub struct Retry(pub f64, u32);

impl Retry {
    /// Waits before another attempt, or gives the error back where the table of errors says not to retry.
    pub async fn pause(&mut self, error: Error) -> Result<(), Error> {
        match &*error.0 {
            "DIGEST_MISMATCH" | "CHUNK_TOO_LARGE" if self.1 < 3 => self.1 += 1,
            "" | "LIMIT_EXCEEDED" | "SUPERSEDED" | "WRONG_OFFSET" | "CHECKSUM_MISMATCH" | "BODY_INCOMPLETE" => {}
            "MANIFEST_REQUIRED" => {}
            _ => return Err(error),
        }
        self.0 = (self.0 * 2.0).clamp(0.6, 30.0);
        let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().subsec_nanos();
        eprintln!("again soon: {} {}", error.0, error.1);
        sleep(error.2.max(Duration::from_secs_f64(self.0 * (0.7 + 0.3e-9 * f64::from(nanos))))).await;
        Ok(())
    }
}

/// A stream of chunks that does not move for 120 s is broken.
async fn moving<T>(next: impl Future<Output = Result<T, Status>>) -> Result<T, Error> {
    Ok(timeout(Duration::from_secs(120), next).await.map_err(|e| error("", e))??)
}

pub fn within<T>(seconds: u64, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(seconds));
    request
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest { sha256: Sha256::digest(bytes).to_vec(), size_bytes: bytes.len() as u64 }
}

/// The digest of a schema (R-SCH-2), or with the tensors' digests that of a model (R-MOD-1).
pub fn digest_of(schema: &[TensorSpec], tensors: Option<&[Digest]>) -> Digest {
    let mut text = format!("fedstream {} v1\n", if tensors.is_some() { "model" } else { "schema" });
    for (i, spec) in schema.iter().enumerate() {
        let shape = spec.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let hex = |tensors: &[Digest]| tensors[i].sha256.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        text += &format!("{}\tF32\t{shape}\t{}\n", spec.name, tensors.map_or("trainable\tweight".into(), hex));
    }
    digest(text.as_bytes())
}

/// Writes a file so that it is there whole, or not at all.
pub fn keep(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let unfinished = path.with_extension("part");
    let written = File::create(&unfinished).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    let named = written.and_then(|()| std::fs::rename(unfinished, path));
    named.and_then(|()| File::open(path.parent().unwrap())?.sync_all()).map_err(|e| error("DISK", e))
}

pub struct Site {
    pub transfer: TransferServiceClient<Channel>,
    pub data: learn::Data,
    pub schema: [TensorSpec; 2],
    pub update: PathBuf,                   // the file that keeps an update until another offer
    pub terms: Mutex<(usize, usize, f32)>, // largest chunk, window, epsilon of Adam
    pub phase: AtomicI32,
    pub model: Mutex<(Digest, Vec<u8>)>, // the last one that was fetched
}

impl Site {
    fn split<'a>(&self, values: &'a [u8]) -> [&'a [u8]; 2] {
        values.split_at(self.data.width * 4).into()
    }

    /// The update that was kept for an upload, if there is one.
    pub fn kept(&self, upload_id: &str) -> Option<(UpdateHeader, Vec<u8>)> {
        let file = std::fs::read(&self.update).ok()?;
        let mut rest = &file[..];
        let header = UpdateHeader::decode_length_delimited(&mut rest).ok()?;
        (header.upload_id == upload_id).then(|| (header, rest.to_vec()))
    }
    /// The whole work on an offer: says what became of the update.
    pub async fn work(self: Arc<Site>, offer: Offer, plan: Plan) -> Result<String, Error> {
        let Offer { upload_id, base_model, .. } = offer;
        if self.kept(&upload_id).is_none() {
            self.phase.store(Phase::Downloading.into(), Relaxed);
            let base = self.fetch(base_model).await?;
            self.phase.store(Phase::Training.into(), Relaxed);
            let (began, epsilon) = (Instant::now(), self.terms.lock().unwrap().2);
            let (weights, loss, epochs) = self.data.fit(learn::floats(&base), &plan, epsilon).await;
            let values: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
            let value = Some(loss).filter(|loss| loss.is_finite());
            let header = UpdateHeader {
                upload_id: upload_id.clone(),
                num_tensors: 2,
                model_digest: Some(digest_of(&self.schema, Some(&self.split(&values).map(digest)))),
                num_examples: self.data.train as u64,
                metrics: vec![Metric { name: "val_loss".into(), value, undefined_reason: String::new() }],
                epochs,
                training_seconds: began.elapsed().as_secs_f64(),
            };
            keep(&self.update, &[header.encode_length_delimited_to_vec(), values].concat())?;
        }
        self.phase.store(Phase::Uploading.into(), Relaxed);
        let mut retry = Retry::default();
        loop {
            match self.send(&upload_id, &mut retry).await {
                Err(error) => retry.pause(error).await?,
                end => return end,
            }
        }
    }

    /// The values of a model.
    pub async fn fetch(&self, model: Option<ModelRef>) -> Result<Vec<u8>, Error> {
        let model = model.and_then(|model| model.model_digest).unwrap_or_default();
        let (mut tensors, mut values, mut retry) = (vec![], vec![], Retry::default());
        if self.model.lock().unwrap().0 != model {
            while let Err(error) = self.receive(&model, &mut tensors, &mut values, &mut retry).await {
                retry.pause(error).await?;
            }
            *self.model.lock().unwrap() = (model, values);
        }
        Ok(self.model.lock().unwrap().1.clone())
    }

    /// Goes on receiving a model, by the digests of its tensors and the values that came before.
    async fn receive(
        &self,
        model: &Digest,
        tensors: &mut Vec<Digest>,
        values: &mut Vec<u8>,
        retry: &mut Retry,
    ) -> Result<(), Error> {
        let (mut from, model_sha256) = (self.transfer.clone(), model.sha256.clone());
        if tensors.is_empty() {
            let request = within(600, GetManifestRequest { model_sha256: model_sha256.clone() });
            let (mut parts, mut entries) = (from.get_manifest(request).await?.into_inner(), vec![]);
            while let Some(message) = moving(parts.message()).await? {
                entries.extend(message.part.unwrap_or_default().entries);
            }
            let digests: Vec<_> = entries.into_iter().map(|entry| entry.digest.unwrap_or_default()).collect();
            match digests.len() {
                0 | 1 => return Err(error("", "the manifest ends early")),
                2 if digest_of(&self.schema, Some(&digests)) == *model => *tensors = digests, // so it has this schema
                _ => return Err(error("DIGEST_MISMATCH", "the manifest is not that of the model asked for")),
            }
        }
        let (read_offset, max_chunk_bytes) = (values.len() as u64, self.terms.lock().unwrap().0 as u32);
        let request = ReadChunksRequest { model_sha256, tensors: vec![], read_offset, max_chunk_bytes };
        let mut chunks = moving(from.read_chunks(request)).await?.into_inner();
        while let Some(message) = moving(chunks.message()).await? {
            let Chunk { write_offset, crc32c, data } = message.chunk.unwrap_or_default();
            match (values.len() as u64).checked_sub(write_offset) {
                _ if crc32c::crc32c(&data) != crc32c => return Err(error("CHECKSUM_MISMATCH", "a chunk came damaged")),
                None => return Err(error("WRONG_OFFSET", "a chunk is missing")),
                Some(known) => values.extend(data.get(known as usize..).unwrap_or_default()),
            }
            retry.0 = 0.0;
            if values.len() > self.data.width * 4 + 4 {
                return Err(error("BODY_TOO_LONG", "more came than the model has"));
            }
        }
        if values.len() < self.data.width * 4 + 4 {
            return Err(error("", "the chunks end early"));
        }
        if self.split(values).map(digest)[..] != tensors[..] {
            values.clear();
            return Err(error("DIGEST_MISMATCH", "a tensor came with other bytes"));
        }
        Ok(())
    }

    /// One attempt to bring the update in: status, manifest, body, finish.
    async fn send(&self, upload_id: &str, retry: &mut Retry) -> Result<String, Error> {
        let (mut to, upload) = (self.transfer.clone(), upload_id.to_string());
        let status = to.get_upload_status(within(60, GetUploadStatusRequest { upload_id: upload.clone() })).await?;
        match status.into_inner().state() {
            UploadState::Closed => return Err(error("ROUND_CLOSED", "the round is closed")),
            UploadState::Admitted | UploadState::Quarantined => {}
            _ => {
                let (header, values) = self.kept(upload_id).ok_or(error("DISK", "the update that was kept is gone"))?;
                let tensors = self.split(&values);
                if Some(digest_of(&self.schema, Some(&tensors.map(digest)))) != header.model_digest {
                    return Err(error("DISK", "the update that was kept is damaged"));
                }
                let entry = |(spec, bytes): (&TensorSpec, &[u8])| TensorEntry {
                    spec: Some(spec.clone()),
                    digest: Some(digest(bytes)),
                    encoding: Encoding::Raw.into(),
                    encoded_size_bytes: bytes.len() as u64,
                };
                let part = ManifestPart { entries: self.schema.iter().zip(tensors).map(entry).collect() };
                let kinds = [put_manifest_request::Kind::Header(header), put_manifest_request::Kind::Part(part)];
                let messages = tokio_stream::iter(kinds.map(|kind| PutManifestRequest { kind: Some(kind) }));
                let answer = to.put_manifest(within(600, messages)).await?.into_inner();
                let body = match answer.missing_tensors[..] {
                    [] => vec![],
                    [i @ (0 | 1)] => tensors[i as usize].to_vec(),
                    [0, 1] => values,
                    _ => return Err(error("DEFECT", "the server's missing tensors are out of order")),
                };
                self.write(upload_id, &body, answer.committed_size as usize, retry).await?;
            }
        }
        let end = to.finish_upload(within(600, FinishUploadRequest { upload_id: upload })).await?.into_inner();
        Ok(format!("{} {}", end.state().as_str_name(), end.reason))
    }

    /// Sends a window's worth, closes its side and hears how much is durable, until all is.
    async fn write(&self, upload_id: &str, body: &[u8], mut committed: usize, retry: &mut Retry) -> Result<(), Error> {
        let (largest, window, _) = *self.terms.lock().unwrap();
        let (size, mut to) = ((largest >> (2 * retry.1)).max(1), self.transfer.clone());
        while committed < body.len() {
            let (upload_id, mut at) = (upload_id.to_string(), committed);
            let mut requests = vec![];
            for data in body[at..body.len().min(at + window)].chunks(size) {
                let chunk = Chunk { write_offset: at as u64, crc32c: crc32c::crc32c(data), data: data.to_vec() };
                requests.push(WriteChunksRequest { upload_id: upload_id.clone(), chunk: Some(chunk) });
                at += data.len();
            }
            let mut answers = moving(to.write_chunks(tokio_stream::iter(requests))).await?.into_inner();
            let before = committed;
            while let Some(answer) = moving(answers.message()).await? {
                committed = answer.committed_size as usize;
                retry.0 = if committed > before { 0.0 } else { retry.0 };
            }
            if committed <= before {
                return Err(error("", "the upload does not move"));
            }
        }
        Ok(())
    }
}
