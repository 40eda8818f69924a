// Package store is what a site keeps on disk: tensors, finished updates, and what encodings left out.
//
//	lock          one client at a time
//	blobs/SHA256  bytes, named by their digest: tensors as they are, and encoded ones as they travel
//	updates/*     a record of each finished update
//	left_out      what lossy encodings have left out of updates so far, up to and with which upload
//
// A blob counts only if its bytes have the digest that is its name; while it is downloaded it ends in `.partial`, and the
// next process goes on there. An update counts once its record is there, which is written last.
package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"fedstream/client/internal/durable"
	"fedstream/client/internal/model"
)

// A Store is in one folder, and one process at a time uses it.
type Store struct {
	folder string
	lock   *os.File

	mu       sync.Mutex
	verified map[model.SHA256]bool // guarded by mu: blobs that this process has hashed
}

// ErrInUse says that another process uses the folder.
var ErrInUse = errors.New("another client uses it")

// Open makes the folder if need be, and locks it until Close.
func Open(folder string) (*Store, error) {
	for _, part := range []string{"blobs", "updates"} {
		if err := durable.MakeFolder(filepath.Join(folder, part)); err != nil {
			return nil, err
		}
	}
	lock, err := os.OpenFile(filepath.Join(folder, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, ErrInUse
	}
	return &Store{folder: folder, lock: lock, verified: map[model.SHA256]bool{}}, nil
}

// Close gives the folder back.
func (s *Store) Close() error { return s.lock.Close() }

func (s *Store) path(name model.SHA256) string {
	return filepath.Join(s.folder, "blobs", name.String())
}

// Has says whether a blob is here, rightly; each is hashed once in a process.
func (s *Store) Has(name model.SHA256) bool {
	s.mu.Lock()
	known := s.verified[name]
	s.mu.Unlock()
	return known || s.Verify(name)
}

// Verify hashes a blob, whether or not that was done before.
func (s *Store) Verify(name model.SHA256) bool {
	isRight := hashOf(s.path(name)) == name
	s.mark(name, isRight)
	return isRight
}

func (s *Store) mark(name model.SHA256, isRight bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if isRight {
		s.verified[name] = true
	} else {
		delete(s.verified, name)
	}
}

// hashOf gives the digest of a file; that of nothing a file could be named by if it cannot be read.
func hashOf(path string) model.SHA256 {
	file, err := os.Open(path)
	if err != nil {
		return model.SHA256{}
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return model.SHA256{}
	}
	return model.SHA256(hash.Sum(nil))
}

// Read gives a blob's bytes.
func (s *Store) Read(name model.SHA256) ([]byte, error) { return os.ReadFile(s.path(name)) }

// ReadAt fills part with a blob's bytes from offset on.
func (s *Store) ReadAt(name model.SHA256, part []byte, offset uint64) error {
	file, err := os.Open(s.path(name))
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.ReadAt(part, int64(offset)); err != nil {
		return fmt.Errorf("a file of kept tensors is shorter than it was: %w", err)
	}
	return nil
}

// Put keeps bytes durably and gives their name.
func (s *Store) Put(data []byte) (model.SHA256, error) {
	name := model.Sum(data)
	if s.Has(name) {
		return name, nil
	}
	if err := durable.WriteBytes(s.path(name), data); err != nil {
		return name, err
	}
	s.mark(name, true)
	return name, nil
}

// A Partial is a blob that is being received.
type Partial struct {
	store *Store
	name  model.SHA256
	file  *os.File
	Size  uint64 // bytes that have arrived
}

// Partial goes on with a blob where its bytes on disk end.
func (s *Store) Partial(name model.SHA256) (*Partial, error) {
	file, err := os.OpenFile(s.path(name)+durable.Temporary, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	facts, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &Partial{s, name, file, uint64(facts.Size())}, nil
}

// Append adds bytes that have arrived. They are not synced: what a power cut leaves is hashed before it counts.
func (p *Partial) Append(data []byte) error {
	_, err := p.file.Write(data)
	p.Size += uint64(len(data))
	return err
}

// Adopt counts the blob, if its bytes are right; else they are forgotten.
func (p *Partial) Adopt() (bool, error) {
	if hashOf(p.file.Name()) != p.name {
		return false, p.Drop()
	}
	if err := p.file.Sync(); err != nil {
		return false, err
	}
	if err := durable.Name(p.file.Name(), p.store.path(p.name)); err != nil {
		return false, err
	}
	p.store.mark(p.name, true)
	return true, nil
}

// Drop forgets what has arrived.
func (p *Partial) Drop() error {
	p.Size = 0
	return p.file.Truncate(0)
}

// Close leaves what has arrived for the next time.
func (p *Partial) Close() { p.file.Close() }

// keepBlobs forgets all other blobs.
func (s *Store) keepBlobs(kept map[model.SHA256]bool) error {
	var name model.SHA256
	err := removeBut(filepath.Join(s.folder, "blobs"), func(file string) bool {
		err := name.UnmarshalText([]byte(strings.TrimSuffix(file, durable.Temporary)))
		return err == nil && kept[name]
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.verified {
		if !kept[name] {
			delete(s.verified, name)
		}
	}
	return err
}

func removeBut(folder string, isKept func(name string) bool) error {
	files, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, file := range files {
		if !isKept(file.Name()) {
			err = errors.Join(err, os.Remove(filepath.Join(folder, file.Name())))
		}
	}
	return err
}
