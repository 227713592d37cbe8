"""The student in plain sentence-transformers, and as the embeddings of LangChain or LlamaIndex.

python embeddings.py STUDENT
"""

import sys

from sentence_transformers import SentenceTransformer


class StudentEmbeddings:
    """What vector stores ask; in LangChain, inherit from `langchain_core.embeddings.Embeddings`."""

    def __init__(self, student: str) -> None:
        self.model = SentenceTransformer(student)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.model.encode(texts, normalize_embeddings=True).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


if __name__ == "__main__":
    student = SentenceTransformer(sys.argv[1])
    vectors = student.encode(["A song for guitar and drums", "music", "food"], normalize_embeddings=True)
    print(student.similarity(vectors[:1], vectors[1:]))
    print(len(StudentEmbeddings(sys.argv[1]).embed_query("A song for guitar and drums")))
