//! Text to token ids and back.

use super::added::{Added, AddedTokens, field_error};
use super::pieces::{Kind, Piece, Pieces};
use super::tokenizer_json::{self, guarded};
use crate::checkpoint::json::{self, clip};
use crate::{Error, Result};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::Replace;
use tokenizers::{
    AddedToken, DecodeStream, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper,
};

/// A row of the embedding table.
pub type TokenId = u32;

/// Largest `tokenizer.json` that is read; Qwen2.5's has 7 MB.
const MAX_TOKENIZER_JSON_BYTES: u64 = 32 << 20;
/// What a space is inside a piece.
const SPACE: char = '\u{2581}';

/// Ids of the tokens that prompts are built with, looked up by name in the checkpoint's own files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SpecialIds {
    pub bos: TokenId,
    pub eos: TokenId,
    pub im_start: TokenId,
    pub im_end: TokenId,
    pub img: TokenId,
    pub img_end: TokenId,
    pub img_context: TokenId,
    /// `[SEG]`; a checkpoint for chat only has none.
    pub seg: Option<TokenId>,
    /// `[REJ]`, "no such thing in the picture"; only checkpoints for generalised referring expressions have it.
    pub rej: Option<TokenId>,
}

/// A checkpoint's tokenizer.
///
/// `tokenizer.model` (sentencepiece BPE) becomes a `tokenizers` BPE: vocabulary and merges from the pieces, space
/// replaced by U+2581 and nothing else, no pre-tokenizer, added tokens and user-defined pieces cut out of the text
/// first. It gives the ids of the published slow tokenizer (`InternLM2Tokenizer`).
pub struct Tokenizer {
    path: PathBuf,
    parsed: tokenizers::Tokenizer,
    plain: tokenizers::Tokenizer,
    special: SpecialIds,
    vocab_size: usize,
    /// User-defined pieces whose id a chat token has taken over, and that token: both names mean the same in parsed text.
    aliases: Vec<(String, String)>,
    /// By id; none for a `tokenizer.json`, whose own decoder is used.
    surfaces: Option<Vec<Surface>>,
}

/// What a token is when written out.
enum Surface {
    Text(String),
    Byte(u8),
    Special(String),
}

impl Surface {
    fn bytes(&self, skip_special: bool) -> &[u8] {
        match self {
            Surface::Text(text) => text.as_bytes(),
            Surface::Byte(byte) => std::slice::from_ref(byte),
            Surface::Special(_) if skip_special => &[],
            Surface::Special(text) => text.as_bytes(),
        }
    }
}

impl Tokenizer {
    /// Opens the tokenizer of the checkpoint folder `dir`: its `tokenizer.json` as it is if there is one, else
    /// `tokenizer.model` with `added_tokens.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`], [`Error::Field`]: files that are missing, damaged or contradict each other, added
    /// ids that are taken or leave a gap, a token that prompts need and that no file names.
    pub fn open(dir: &Path) -> Result<Self> {
        let json = dir.join("tokenizer.json");
        let added = AddedTokens::open(dir)?;
        let tokenizer = if json.is_file() {
            Self::from_json(json, added)?
        } else {
            Self::from_pieces(Pieces::open(&dir.join("tokenizer.model"))?, added)?
        };
        tokenizer.check_plain()?;
        Ok(tokenizer)
    }

    /// The `tokenizers` file, but with whole texts: no truncation, no padding.
    fn from_json(path: PathBuf, added: AddedTokens) -> Result<Self> {
        let parsed = tokenizer_json::parse(&path, &json::read(&path, MAX_TOKENIZER_JSON_BYTES)?)?;
        let vocab_size = parsed.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let (bos, eos) = (added.bos.unwrap_or("<s>".into()), added.eos.unwrap_or("</s>".into()));
        let special = SpecialIds::find(&path, &bos, &eos, |name| parsed.token_to_id(name))?;
        Ok(Self {
            plain: plain(&parsed),
            path,
            parsed,
            special,
            vocab_size,
            aliases: Vec::new(),
            surfaces: None,
        })
    }

    /// Pieces and the tokens beside them as a `tokenizers` BPE.
    fn from_pieces(mut pieces: Pieces, added: AddedTokens) -> Result<Self> {
        let merges = pieces.merges()?;
        let path = pieces.path.clone();
        let surface = |p: &Piece| match p.kind {
            Kind::Byte(byte) => Surface::Byte(byte),
            Kind::Normal | Kind::UserDefined => Surface::Text(p.text.replace(SPACE, " ")),
            Kind::Unknown | Kind::Control => Surface::Special(p.text.clone()),
        };
        let mut surfaces: Vec<Surface> = pieces.rows.iter().map(surface).collect();
        let mut aliases = Vec::new();
        // Cut out of text before merging. Added tokens are special here even where the files do not say so: none may come
        // from a user's text.
        let mut cut = Vec::new();
        let named: HashSet<String> = added.by_id.values().map(|(t, _)| t.content.clone()).collect();
        for (id, (token, file)) in added.by_id {
            if let Some(replaced) = place(&mut pieces, id, &token, &file, surfaces.len())? {
                aliases.push((replaced, token.content.clone()));
            }
            let surface = if token.special { Surface::Special } else { Surface::Text }(token.content.clone());
            match surfaces.get_mut(id as usize) {
                Some(there) => *there = surface,
                None => surfaces.push(surface),
            }
            cut.push(
                AddedToken::from(token.content, true)
                    .single_word(token.single_word)
                    .lstrip(token.lstrip)
                    .rstrip(token.rstrip),
            );
        }
        for (id, piece) in pieces.rows.iter().enumerate() {
            let replaced = pieces.ids.get(&piece.text) != Some(&(id as TokenId));
            let special = matches!(piece.kind, Kind::Unknown | Kind::Control);
            let whole = special || piece.kind == Kind::UserDefined;
            if whole && !replaced && !named.contains(&piece.text) {
                cut.push(AddedToken::from(piece.text.clone(), special).normalized(false));
            }
        }

        let (bos, eos) = (added.bos.unwrap_or(pieces.bos), added.eos.unwrap_or(pieces.eos));
        let special = SpecialIds::find(&path, &bos, &eos, |name| pieces.ids.get(name).copied())?;
        let failed =
            |e: tokenizers::Error| Error::file(&path, "pieces that make a BPE tokenizer", e.to_string());
        let bpe = BPE::builder()
            .vocab_and_merges(pieces.ids.into_iter().collect::<Vocab>(), merges)
            .unk_token(pieces.rows[pieces.unknown as usize].text.clone())
            .fuse_unk(true)
            .byte_fallback(pieces.byte_fallback)
            .cache_capacity(0) // stretches are sentences and hardly ever come again
            .build()
            .map_err(failed)?;
        let mut parsed = tokenizers::Tokenizer::new(bpe);
        let spaces = Replace::new(" ", SPACE.to_string()).map_err(failed)?;
        parsed.with_normalizer(Some(spaces)).map_err(failed)?;
        guarded(|| parsed.add_tokens(cut)).map_err(|e| failed(e.into()))?;
        Ok(Self {
            plain: plain(&parsed),
            vocab_size: surfaces.len(),
            path,
            parsed,
            special,
            aliases,
            surfaces: Some(surfaces),
        })
    }

    /// A tokenizer of a `tokenizer.model`'s bytes, with the tokens that prompts need added behind its pieces.
    pub(super) fn from_model(model: &[u8]) -> Result<Self> {
        let path = Path::new("tokenizer.model");
        let pieces = Pieces::parse(path, model)?;
        let mut added = AddedTokens::default();
        for name in ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "[SEG]", "[REJ]"] {
            let id = (pieces.rows.len() + added.by_id.len()) as TokenId;
            added.by_id.insert(id, (Added::special(name.into()), path.into()));
        }
        let tokenizer = Self::from_pieces(pieces, added)?;
        tokenizer.check_plain()?;
        Ok(tokenizer)
    }

    /// A token's own text, as a user may write it, must not yield a token that prompts give a meaning.
    fn check_plain(&self) -> Result<()> {
        let s = &self.special;
        let mut meaningful = vec![s.bos, s.eos, s.im_start, s.im_end, s.img, s.img_end, s.img_context];
        meaningful.extend([s.seg, s.rej].into_iter().flatten());
        let added = self.parsed.get_added_tokens_decoder().into_values().map(|t| t.content);
        for text in added.chain(meaningful.iter().filter_map(|&id| self.parsed.id_to_token(id))) {
            let ids = self.encode_plain(&text)?;
            if let Some(id) = ids.iter().find(|id| meaningful.contains(id)) {
                let expected = format!("`{}` as text to yield ordinary tokens", clip(&text));
                return Err(Error::file(&self.path, expected, format!("special token {id}")));
            }
        }
        Ok(())
    }

    /// The ids that prompts need.
    pub fn special(&self) -> &SpecialIds {
        &self.special
    }

    /// The id of a token of exactly this text.
    pub fn token(&self, text: &str) -> Option<TokenId> {
        self.parsed.token_to_id(text)
    }

    /// Highest id + 1; the embedding table must have at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Ids of `text` as the published tokenizer gives them: the text of a special token becomes that token. No BOS is
    /// added.
    ///
    /// Only for strings that are trusted to hold special tokens. What a user writes goes through
    /// [`Tokenizer::encode_plain`].
    ///
    /// # Errors
    /// [`Error::File`] if a `tokenizer.json` has no token for a part of `text`; a `tokenizer.model` always has.
    pub fn encode_parsed(&self, text: &str) -> Result<Vec<TokenId>> {
        let mut text = std::borrow::Cow::Borrowed(text);
        for (name, token) in &self.aliases {
            if text.contains(name.as_str()) {
                text = text.replace(name.as_str(), token).into();
            }
        }
        self.encode(&self.parsed, &text)
    }

    /// Ids of `text` as text: `[SEG]`, `<|im_end|>`, `[UNUSED_TOKEN_145]` are the characters they are written with, and
    /// no special token can arise (but the unknown one, where a vocabulary has neither a character nor its bytes).
    /// Everything else is as in [`Tokenizer::encode_parsed`].
    ///
    /// # Errors
    /// As [`Tokenizer::encode_parsed`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<TokenId>> {
        self.encode(&self.plain, text)
    }

    fn encode(&self, with: &tokenizers::Tokenizer, text: &str) -> Result<Vec<TokenId>> {
        let encoding = guarded(|| with.encode_fast(text, false))
            .map_err(|e| Error::file(&self.path, "a token for every character", e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`; with `skip_special`, without special tokens.
    ///
    /// Bytes that are no UTF-8 become U+FFFD one by one, as sentencepiece has it; so does an id past the vocabulary. The
    /// text is exactly what the tokens stand for, as sentencepiece decodes it: the published class then also closes up
    /// spaces before punctuation and sets others around special tokens, which a stream could not do.
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> String {
        if self.surfaces.is_none() {
            return guarded(|| self.parsed.decode(ids, skip_special)).unwrap_or_default();
        }
        let mut decoder = self.decoder(skip_special);
        let mut text: String = ids.iter().map(|&id| decoder.push(id)).collect();
        text.push_str(&decoder.finish());
        text
    }

    /// Decodes token by token; see [`Decoder`].
    pub fn decoder(&self, skip_special: bool) -> Decoder<'_> {
        Decoder(match &self.surfaces {
            Some(surfaces) => Stream::Pieces { surfaces, skip_special, pending: Vec::new() },
            None => Stream::Json {
                stream: Box::new(self.parsed.decode_stream(skip_special)),
                tokenizer: &self.parsed,
                skip_special,
                held: Vec::new(),
            },
        })
    }
}

/// Gives an added token its id among the pieces' texts: one of its own (the `next` free one), that of the control piece of
/// the same text, or a user-defined piece's, whose text is then returned (`[UNUSED_TOKEN_145]` is `<|im_end|>`).
fn place(
    pieces: &mut Pieces,
    id: TokenId,
    token: &Added,
    file: &Path,
    next: usize,
) -> Result<Option<String>> {
    let refuse =
        |expected: String, found: String| Err(field_error(file, clip(&token.content), expected, found));
    if token.content.chars().nth(1).is_none() {
        return refuse("two characters at least (one could come from a user's text)".into(), "one".into());
    }
    if token.lstrip && token.content.trim().is_empty() {
        return refuse("more than spaces to strip on the left".into(), "spaces".into()); // could end before it begins
    }
    let there = pieces.ids.get(&token.content).copied();
    let path = pieces.path.display();
    let replaced = match (there, pieces.rows.get(id as usize)) {
        (Some(there), _) if there != id => {
            return refuse(format!("id {there}, the piece's in {path}"), id.to_string());
        }
        (Some(_), Some(piece)) if matches!(piece.kind, Kind::Normal | Kind::Byte(_)) => {
            return refuse("no ordinary piece".into(), format!("piece {id} of {path}"));
        }
        (Some(_), _) => None,
        (None, Some(piece)) if piece.kind == Kind::UserDefined => Some(piece.text.clone()),
        (None, Some(piece)) => {
            let expected =
                format!("a free id or a user-defined piece's ({path} has {} pieces)", pieces.rows.len());
            return refuse(expected, format!("{id}, which is `{}`", clip(&piece.text)));
        }
        (None, None) if id as usize != next => {
            return refuse(format!("id {next} (no gap after the pieces)"), id.to_string());
        }
        (None, None) => None,
    };
    if let Some(text) = &replaced {
        pieces.ids.remove(text);
    }
    pieces.ids.insert(token.content.clone(), id);
    Ok(replaced)
}

impl SpecialIds {
    fn find(path: &Path, bos: &str, eos: &str, id: impl Fn(&str) -> Option<TokenId>) -> Result<Self> {
        let need = |name: &str| {
            id(name).ok_or_else(|| {
                Error::file(
                    path,
                    format!("a token `{}` here or in the JSON files beside it", clip(name)),
                    "none",
                )
            })
        };
        Ok(Self {
            bos: need(bos)?,
            eos: need(eos)?,
            im_start: need("<|im_start|>")?,
            im_end: need("<|im_end|>")?,
            img: need("<img>")?,
            img_end: need("</img>")?,
            img_context: need("<IMG_CONTEXT>")?,
            seg: id("[SEG]"),
            rej: id("[REJ]"),
        })
    }
}

/// The same tokenizer, blind to special tokens in text.
fn plain(parsed: &tokenizers::Tokenizer) -> tokenizers::Tokenizer {
    let mut plain = parsed.clone();
    plain.set_encode_special_tokens(true);
    plain
}

/// Turns a growing answer into text, never handing out half a character.
pub struct Decoder<'a>(Stream<'a>);

type JsonStream<'a> = DecodeStream<
    'a,
    ModelWrapper,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

enum Stream<'a> {
    /// `pending`: bytes that may be the beginning of a character.
    Pieces { surfaces: &'a [Surface], skip_special: bool, pending: Vec<u8> },
    /// `held`: ids for which the library has given no text yet.
    Json {
        stream: Box<JsonStream<'a>>,
        tokenizer: &'a tokenizers::Tokenizer,
        skip_special: bool,
        held: Vec<TokenId>,
    },
}

impl Decoder<'_> {
    /// The text that became certain with this token; often one word, empty inside a character.
    pub fn push(&mut self, id: TokenId) -> String {
        match &mut self.0 {
            Stream::Pieces { surfaces, skip_special, pending } => {
                pending.extend_from_slice(
                    surfaces.get(id as usize).map_or("\u{FFFD}".as_bytes(), |s| s.bytes(*skip_special)),
                );
                take_text(pending, false)
            }
            Stream::Json { stream, held, .. } => match guarded(|| stream.step(id)) {
                Ok(Some(text)) => {
                    held.clear();
                    text
                }
                _ => {
                    held.push(id);
                    String::new()
                }
            },
        }
    }

    /// What was held back, as U+FFFD: an answer that ends inside a character.
    pub fn finish(&mut self) -> String {
        match &mut self.0 {
            Stream::Pieces { pending, .. } => take_text(pending, true),
            Stream::Json { tokenizer, skip_special, held, .. } => {
                guarded(|| tokenizer.decode(&std::mem::take(held), *skip_special)).unwrap_or_default()
            }
        }
    }
}

/// Takes all the text off the front of `bytes`; a character that may yet be completed stays unless `last`.
fn take_text(bytes: &mut Vec<u8>, last: bool) -> String {
    let mut text = String::new();
    let mut taken = 0;
    for chunk in bytes.utf8_chunks() {
        let bad = chunk.invalid();
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let begun = std::str::from_utf8(bad).is_err_and(|e| e.error_len().is_none());
        if begun && !last && taken + bad.len() == bytes.len() {
            break;
        }
        text.extend(bad.iter().map(|_| char::REPLACEMENT_CHARACTER));
        taken += bad.len();
    }
    bytes.drain(..taken);
    text
}
