//! Requests in, answers out, one after another: the next pictures are prepared on another thread while the device works.

use super::{Engine, MAX_IMAGES, Prepared, Request, Segmentation};
use crate::Result;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, sync_channel};

/// Answers in the order of the requests; made by [`Engine::stream`].
pub struct Stream<'e> {
    engine: &'e mut Engine,
    prepared: Receiver<Result<Prepared>>,
    ready: VecDeque<Result<Segmentation>>,
}

impl<'e> Stream<'e> {
    pub(super) fn new<I>(engine: &'e mut Engine, requests: I) -> Self
    where
        I: IntoIterator<Item = Request>,
        I::IntoIter: Send + 'static,
    {
        let (send, prepared) = sync_channel(MAX_IMAGES);
        let (preprocessor, requests) = (engine.preprocessor(), requests.into_iter());
        // Ends with the requests, or at the first one that is ready after the stream was dropped.
        std::thread::spawn(move || {
            for request in requests {
                if send.send(preprocessor.prepare(&request)).is_err() {
                    return;
                }
            }
        });
        Self { engine, prepared, ready: VecDeque::new() }
    }

    /// Runs what is prepared, up to a run's fill, together; each alone where a run fails, so that every request has an error of its own.
    fn fill(&mut self) {
        let first = self.prepared.recv().into_iter();
        let mut batch = Vec::new();
        for prepared in first.chain(self.prepared.try_iter().take(MAX_IMAGES - 1)) {
            match prepared {
                Ok(prepared) => batch.push(prepared),
                // Answers keep the requests' order.
                Err(e) => {
                    self.run(batch);
                    self.ready.push_back(Err(e));
                    return;
                }
            }
        }
        self.run(batch);
    }

    fn run(&mut self, mut batch: Vec<Prepared>) {
        if batch.is_empty() {
            return;
        }
        match self.engine.segment_batch(&mut batch, false) {
            Ok(answers) => self.ready.extend(answers.into_iter().map(Ok)),
            Err(e) if batch.len() == 1 => self.ready.push_back(Err(e)),
            Err(_) => {
                for mut one in batch {
                    let answers = self.engine.segment_batch(std::slice::from_mut(&mut one), false);
                    self.ready.push_back(answers.map(|mut a| a.remove(0)));
                }
            }
        }
    }
}

impl Iterator for Stream<'_> {
    type Item = Result<Segmentation>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty() {
            self.fill();
        }
        self.ready.pop_front()
    }
}
