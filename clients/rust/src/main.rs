//! A minimal fedstream client. It learns the head of the brain MRI model, on a file of features.

mod learn;
mod work;
mod pb {
    tonic::include_proto!("fedstream.v1");
}

use pb::{negotiate_request::Kind as Say, negotiate_response::Kind as Hear, *};
use pb::{negotiation_service_client::NegotiationServiceClient, transfer_service_client::TransferServiceClient};
use std::{collections::HashMap, path::Path, sync::atomic::Ordering::Relaxed, sync::Arc, time::Duration};
use tokio::{sync::mpsc, task::JoinHandle, time::sleep_until, time::timeout, time::Instant};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use work::{error, Error, Retry, Site};

type End = Result<String, Error>;

struct Client {
    site: Arc<Site>,
    server: NegotiationServiceClient<Channel>,
    name: String,
    out: String,
    max_epochs: u32,
    offer: Offer,                  // the last one
    work: Option<JoinHandle<End>>, // on it
    over: bool,                    // whether nothing more can come of it
}

impl Client {
    fn hello(&self) -> Say {
        let data = &self.site.data;
        Say::Hello(Hello {
            protocol: Some(ProtocolRange { min: 1, max: 1 }),
            client_name: self.name.clone(),
            schema_sha256: work::digest_of(&self.site.schema, None).sha256,
            meaning: Some(data.meaning.clone()),
            num_examples: data.train as u64,
            limits: Some(SiteLimits { max_epochs: self.max_epochs, max_training_time: None }),
            software: concat!("fedstream-minimal ", env!("CARGO_PKG_VERSION")).into(),
            synthetic_data: data.generated,
            ..Default::default()
        })
    }

    /// One session, to the end of the federation; or the error that ended it.
    async fn session(&mut self, retry: &mut Retry) -> Result<(), Error> {
        let task = self.server.describe_task(work::within(60, DescribeTaskRequest {})).await?.into_inner();
        let epsilon = task.task_settings.get("adam_epsilon").and_then(|text| text.parse().ok()).unwrap_or(1e-3);
        eprintln!("the task is {} {:?}", task.task_name, task.task_settings);
        let (sender, receiver) = mpsc::channel(64);
        let say = |kind| sender.try_send(NegotiateRequest { kind: Some(kind) }).map_err(|e| error("", e));
        say(self.hello())?;
        let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut stream = self.server.negotiate(receiver).await?.into_inner();
        let (mut lease, mut sign) = (Duration::from_secs(60), Instant::now());
        let renew = |lease: &mut Duration, new: Option<prost_types::Duration>| {
            *lease = new.and_then(|new| new.try_into().ok()).filter(|new: &Duration| !new.is_zero()).unwrap_or(*lease)
        };
        loop {
            let message = tokio::select! {
                message = stream.message() => message?.ok_or(error("", "the stream ended"))?.kind,
                end = async { self.work.as_mut().unwrap().await }, if self.work.is_some() => {
                    self.work = None;
                    self.ended(end.unwrap_or_else(|e| Err(error("DEFECT", e))), say).await?;
                    continue;
                }
                () = sleep_until(sign), if self.work.is_some() => {
                    let (offer_id, phase) = (self.offer.offer_id.clone(), self.site.phase.load(Relaxed));
                    say(Say::Progress(Progress { offer_id, phase, ..Default::default() }))?;
                    sign = Instant::now() + lease / 3;
                    continue;
                }
            };
            match message {
                Some(Hear::Welcome(terms)) => {
                    let or = |said, default| if said == 0 { default } else { said };
                    let (chunk, window) = (or(terms.max_chunk_bytes, 1 << 20), or(terms.window_bytes, 4 << 20));
                    *self.site.terms.lock().unwrap() = (chunk as usize, window as usize, epsilon);
                    retry.0 = 0.0;
                    eprintln!("welcome as {}: {} rounds", terms.client_name, terms.rounds);
                }
                Some(Hear::Declined(no)) => return Err(error("DECLINED", format!("{no:#?}"))),
                Some(Hear::SchemaQuery(_)) => {
                    say(Say::SchemaPart(SchemaPart { tensors: self.site.schema.to_vec(), last: true }))?
                }
                Some(Hear::Waiting(waiting)) => eprintln!("the server waits {}", waiting.reason),
                Some(Hear::Offer(offer)) => {
                    renew(&mut lease, offer.lease);
                    let kept = self.site.kept(&offer.upload_id).is_some();
                    if offer.offer_id != self.offer.offer_id {
                        self.stop(!kept).await;
                        self.over = false;
                    }
                    let (offer_id, epochs) =
                        (offer.offer_id.clone(), offer.plan.as_ref().map_or(0, |plan| plan.epochs));
                    self.offer = offer;
                    say(if self.over {
                        Say::Decline(Refusal { offer_id, reason: "it could not be done".into() })
                    } else if epochs > self.max_epochs && self.max_epochs > 0 && self.work.is_none() && !kept {
                        let reason = format!("at most {} epochs here", self.max_epochs);
                        Say::CounterOffer(CounterOffer { offer_id, epochs: self.max_epochs, time_needed: None, reason })
                    } else {
                        Say::Accept(Acceptance { offer_id })
                    })?;
                }
                Some(Hear::Confirm(yes))
                    if yes.offer_id == self.offer.offer_id && self.work.is_none() && !self.over =>
                {
                    renew(&mut lease, yes.lease);
                    sign = Instant::now();
                    let work = self.site.clone().work(self.offer.clone(), yes.plan.unwrap_or_default());
                    self.work = Some(tokio::spawn(work));
                }
                Some(
                    Hear::Withdraw(Withdrawal { offer_id, reason }) | Hear::Cancel(Cancellation { offer_id, reason }),
                ) if offer_id == self.offer.offer_id => {
                    eprintln!("stopped: {reason}");
                    self.stop(true).await;
                }
                Some(Hear::LeaseRenewal(new)) if new.offer_id == self.offer.offer_id => renew(&mut lease, new.lease),
                Some(Hear::RoundOutcome(end)) => {
                    let outcome = end.outcome().as_str_name();
                    eprintln!("round {}: {} {outcome} {}", end.round, end.reason, end.outcome_reason)
                }
                Some(Hear::FederationOutcome(end)) => {
                    eprintln!("the federation is over: {}", end.reason);
                    self.stop(true).await;
                    let fetched = timeout(Duration::from_secs(60), self.site.fetch(end.best_model)).await;
                    let saved = fetched.map_err(|e| error("", e)).and_then(|values| self.save(&values?));
                    drop(sender);
                    let over = async { while let Ok(Some(_)) = stream.message().await {} };
                    timeout(Duration::from_secs(10), over).await.ok();
                    return saved
                        .map_err(|e| error("NO_MODEL", format!("the best model did not come: {} {}", e.0, e.1)));
                }
                _ => {}
            }
        }
    }

    async fn stop(&mut self, drop_update: bool) {
        if let Some(work) = self.work.take() {
            work.abort();
            work.await.ok();
        }
        if drop_update {
            self.over = true;
            std::fs::remove_file(&self.site.update).ok();
        }
    }

    async fn ended(&mut self, end: End, say: impl Fn(Say) -> Result<(), Error>) -> Result<(), Error> {
        let round = self.offer.round;
        let Err(why) = end.map(|state| eprintln!("round {round}: delivered, {state}")) else { return Ok(()) };
        let (offer_id, reason) = (self.offer.offer_id.clone(), format!("{} {}", why.0, why.1));
        eprintln!("round {round}: {reason}");
        self.stop(true).await;
        match &*why.0 {
            "UNAUTHENTICATED" | "PERMISSION_DENIED" => Err(why),
            "ROUND_CLOSED" | "UNKNOWN_UPLOAD" | "MANIFEST_CONFLICT" => Ok(()),
            _ => say(Say::Failure(Failure { offer_id, reason })),
        }
    }

    fn save(&self, values: &[u8]) -> Result<(), Error> {
        let tensor = |i: usize, from, to| {
            let (name, shape) = (&self.site.schema[i].name, &self.site.schema[i].shape);
            format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{from},{to}]}}"#)
        };
        let kernel = values.len() - 4;
        let header = format!("{{{},{}}}", tensor(0, 0, kernel), tensor(1, kernel, values.len()));
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), values].concat();
        work::keep(&Path::new(&self.out).join("head.safetensors"), &file)
    }
}

fn channel(options: &HashMap<String, String>, server: &str) -> Result<Channel, Box<dyn std::error::Error>> {
    let (plaintext, read) =
        (options.contains_key("plaintext"), |name: &str| options.get(name).map(std::fs::read).transpose());
    let mut endpoint = Endpoint::from_shared(format!("{}://{server}", if plaintext { "http" } else { "https" }))?;
    if let Some(authority) = read("server-ca")?.filter(|_| !plaintext) {
        let authority = Certificate::from_pem(authority);
        let mut tls = ClientTlsConfig::new().ca_certificate(authority).domain_name("fedstream-server");
        if let (Some(certificate), Some(key)) = (read("certificate")?, read("key")?) {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        endpoint = endpoint.tls_config(tls)?;
    } else if !plaintext || !["127.", "localhost:", "[::1]:"].iter().any(|start| server.starts_with(start)) {
        return Err("--server-ca FILE is needed, or --plaintext and a server on this machine".into());
    }
    let alive = endpoint.http2_keep_alive_interval(Duration::from_secs(30)).keep_alive_timeout(Duration::from_secs(20));
    Ok(alive.keep_alive_while_idle(true).connect_timeout(Duration::from_secs(20)).connect_lazy())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut words, mut options) = (std::env::args().skip(2), HashMap::new());
    while let Some(word) = words.next() {
        let value = if word == "--plaintext" { Some(String::new()) } else { words.next() };
        options.insert(word.trim_start_matches('-').to_string(), value.ok_or(format!("{word} lacks a value"))?);
    }
    let need = |name: &str| options.get(name).cloned().ok_or(format!("run needs --{name}"));
    let (server, name, path, state, out) =
        (need("server")?, need("name")?, need("data")?, need("state-dir")?, need("out")?);
    [&state, &out].into_iter().try_for_each(std::fs::create_dir_all)?;
    let data = learn::Data::parse(&std::fs::read(&path)?).ok_or(format!("{path} is no features file"))?;
    let channel = channel(&options, &server)?;
    let tensor = |name: &str, shape| {
        let (dtype, role) = (DataType::Float32.into(), TensorRole::Weight.into());
        TensorSpec { name: name.into(), dtype, shape, trainable: true, role }
    };
    let site = Site {
        transfer: TransferServiceClient::new(channel.clone()),
        schema: [tensor("head/kernel", vec![data.width as u64, 1]), tensor("head/bias", vec![1])],
        data,
        update: Path::new(&state).join("update"),
        terms: (1 << 20, 4 << 20, 1e-3).into(),
        phase: Default::default(),
        model: Default::default(),
    };
    let (server, max_epochs) =
        (NegotiationServiceClient::new(channel), options.get("max-epochs").map_or(Ok(0), |n| n.parse())?);
    let (site, offer, work, over) = (site.into(), Offer::default(), None, false);
    let mut client = Client { site, server, name, out, max_epochs, offer, work, over };
    let (mut retry, mut superseded) = (Retry::default(), None::<Instant>);
    while let Err(why) = client.session(&mut retry).await {
        let again = superseded.is_some_and(|when| when.elapsed() < Duration::from_secs(300));
        if why.0 == "SUPERSEDED" && !again {
            superseded = Some(Instant::now());
        } else if !["", "LIMIT_EXCEEDED"].contains(&&*why.0) {
            return Err(format!("{} {}", why.0, why.1).into());
        }
        retry.pause(why).await.map_err(|why| why.1)?;
    }
    Ok(())
}
